"""Webhooks: queue deliveries, sign and send them to public addresses only."""

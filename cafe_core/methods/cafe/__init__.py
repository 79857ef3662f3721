"""CAFE: aligned features and discrimination."""

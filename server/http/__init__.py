"""HTTP features that do not depend on the application: body limits, conditional requests, request IDs, graceful stop."""

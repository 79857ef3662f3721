"""What a web server does for any application: body limits, conditional requests, request IDs, graceful stop."""

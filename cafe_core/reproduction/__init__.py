"""Reproduce the paper's tables and figures with ordinary jobs, and compare with the published numbers (`cafe reproduce`)."""

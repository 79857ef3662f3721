"""The paper's tables and figures as sets of ordinary jobs, set beside the published numbers (`cafe reproduce`)."""

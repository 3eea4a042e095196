"""Methods side by side: the paper's tables and figures by one command."""

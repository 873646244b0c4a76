"""Who may do what: principals, API keys, JSON Web Tokens, tickets, the guard of routes and frames, the audit log."""

"""Who may do what: keys, their tools, limits and quotas; rules, approvals and the audit log."""

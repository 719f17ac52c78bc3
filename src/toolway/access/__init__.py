"""Who may do what: keys, their tools, limits and quotas; rules, approvals, pinned tools and the audit log."""

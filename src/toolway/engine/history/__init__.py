"""What the client does not see of a conversation: kept, found again, put back."""

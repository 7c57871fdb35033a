"""From chats to token ids, and from token ids to text."""

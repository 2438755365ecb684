"""What a training leaves for people to read: its log, shown, and the card of its model."""

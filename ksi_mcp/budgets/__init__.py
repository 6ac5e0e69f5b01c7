"""What may be spent? A tree of accounts; money is set aside before a call and settled after it."""

"""Who does the next turn? A turn is a sequence of durable rounds, each paid and stored on its own."""

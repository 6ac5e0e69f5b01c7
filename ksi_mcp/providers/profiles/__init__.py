"""Named models with their settings, in layers."""

"""The public surface: each operation is declared once, one file a capability."""

"""The seam to SQL: `Database.write(fn)` and `Database.read(fn)`, `fn` a plain function of a transaction."""

from ksi_mcp.db.database import Database, Row, Tx

__all__ = ["Database", "Row", "Tx"]

"""Who hears what? The rule table that agents may change while it runs, and the pump that delivers by it."""

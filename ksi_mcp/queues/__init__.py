"""What waits, in which order? One lane a session; only its head is ever ready."""

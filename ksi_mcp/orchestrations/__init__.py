"""Which runs are open, and how far are they?"""

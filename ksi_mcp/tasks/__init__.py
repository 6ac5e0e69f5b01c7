"""What became of calls that were handed over?"""

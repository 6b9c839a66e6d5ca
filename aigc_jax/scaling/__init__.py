"""Many runs: what differs between them, and what follows from it."""

"""The one small set of building blocks every architecture is made of."""

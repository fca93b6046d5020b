"""Estimators of gradients, and clients that train with them."""

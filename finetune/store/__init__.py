"""Adapter folders: what stands in one, what may be loaded from one, and how they are kept, compared and passed on."""

"""The frozen base, its adapters and their folders."""

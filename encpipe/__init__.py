"""Envelope encryption for Parquet datasets, decrypted only in memory, straight into PyTorch."""

"""Check untrusted model files before any library reads them.

A published model may try to run code, read other files, exhaust memory or time, or make predictions wrong (SECURITY.md).
"""

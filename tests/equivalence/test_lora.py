"""Being written by the helper for contract and equivalence tests (11:36): please leave it to them."""

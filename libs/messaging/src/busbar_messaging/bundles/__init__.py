"""Model bundles on the bus: what may be in one, who vouches for it, where its pieces lie.

`contents` says what a bundle may consist of, `sealing` whose word is taken for it, `approval`
what needs an operator's, and `store` reads and writes the object store.
"""

"""The network: backbone, decoder, heads, and the directory it is kept in."""

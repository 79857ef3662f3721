"""Store synthetic sets in files, and draw previews of them."""

"""Does a force field's physics hold? Measurements, and the certificate made of them."""

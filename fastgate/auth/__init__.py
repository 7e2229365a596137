"""Who is it: one file per method, behind the compiled gate that walks a route's methods in order."""

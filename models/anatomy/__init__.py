"""What a model is made of, by its config: every parameter's group, name and spec, a module a kind. Knows no torch."""

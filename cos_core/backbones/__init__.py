"""Which model tells how relevant each area is to an answer: one module each. See interfaces.Backbone."""

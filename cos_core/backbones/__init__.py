"""Models that compute how relevant each area of a picture is to an answer: one module each. See interfaces.Backbone."""

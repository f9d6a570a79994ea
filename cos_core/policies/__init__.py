"""How the region of interest is chosen: one module a row of CoS Table 3a, plus controls. See interfaces.Policy."""

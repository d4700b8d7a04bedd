"""Device profiles as data, one YAML file each; `edgebuild.targets.profile` reads them."""

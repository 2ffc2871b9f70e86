"""One foreign system a module. Each translates foreign errors once; adapters do not import each other."""

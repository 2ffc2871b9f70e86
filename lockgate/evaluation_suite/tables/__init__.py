"""Hand-written tables that `lockgate.evaluation_suite.build` turns into evaluation items."""

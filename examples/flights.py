def objective(trial):
    """How long a flight takes, in hours: to be as short as can be."""
    speed = trial.suggest_float("speed_km_h", 500, 1100)
    if trial.number == 4:
        raise ValueError("no flight at this speed")
    burnt = (speed / 900) ** 3
    return 4000 / speed + max(0, burnt - 1)  # past its tanks it must land and fill them

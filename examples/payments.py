RATES = {"EUR": 1.1, "USD": 1.0}


def dollars(row):
    return round(row["amount"] * RATES[row["currency"]], 2)

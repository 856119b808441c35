"""Results for people: table, plots, report.html."""

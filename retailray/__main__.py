from retailray.cli import run

run()

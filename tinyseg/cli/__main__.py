from tinyseg.cli import main

main()

from diffad.cli.main import main

raise SystemExit(main())

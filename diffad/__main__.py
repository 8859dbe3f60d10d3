from diffad.cli import main

raise SystemExit(main())

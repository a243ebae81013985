"""`python -m moss_vllm` is `moss`: for launchers, and where `moss` is not on the PATH."""

from moss_vllm.commands.moss import main

if __name__ == "__main__":
    main()

# Completion of the commands in launch/ for bash and zsh, behind python, python3, deepspeed or torchrun:  . tools/completion.sh
# The command itself knows its options, config files and config fields (lm1b/command_line.py, by argcomplete).

_lm1b_complete() {
  local index script="" python
  for ((index = 1; index < COMP_CWORD; index++)); do
    case "${COMP_WORDS[index]}" in
      launch/*.py | */launch/*.py) script="${COMP_WORDS[index]}"; break ;;
    esac
  done
  COMPREPLY=()
  [ -f "$script" ] || return 0  # not one of ours: the shell's own completion, of files
  case "${COMP_WORDS[0]}" in
    *python*) python="${COMP_WORDS[0]}" ;;
    *) python=python ;;
  esac
  local IFS=$'\013'
  COMPREPLY=($(IFS="$IFS" COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" COMP_TYPE="$COMP_TYPE" \
    _ARGCOMPLETE=$((index + 1)) _ARGCOMPLETE_SHELL=bash _ARGCOMPLETE_SUPPRESS_SPACE=1 _ARGCOMPLETE_COMP_WORDBREAKS="$COMP_WORDBREAKS" \
    "$python" "$script" 8>&1 9>/dev/null >/dev/null 2>&1 </dev/null))
  case "${COMPREPLY[0]-}" in
    *[=/:.]) [ ${#COMPREPLY[@]} -gt 1 ] || compopt -o nospace 2>/dev/null ;;
  esac
}

if [ -n "${ZSH_VERSION-}" ]; then
  autoload -Uz compinit bashcompinit
  compinit
  bashcompinit
fi
complete -o default -F _lm1b_complete python python3 deepspeed torchrun

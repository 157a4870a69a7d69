#!/bin/sh
# Makes sample.wav anew: a short call, the operator on the left, the client on the right.
# Needs sox and espeak-ng (Debian packages of these names).
set -eu

sample=$(dirname "$0")/sample.wav
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT

turn=0
# say CHANNELS VOICE SPEED TEXT: one turn of the dialog, the other channel silent.
say() {
    turn=$((turn + 1))
    espeak-ng -v "$2" -s "$3" -w "$parts/voice.wav" "$4"
    sox -D "$parts/voice.wav" -r 8000 -b 16 "$parts/turn$turn.wav" \
        gain -n -4 silence 1 0.01 0.5% reverse silence 1 0.01 0.5% pad 0.1 reverse pad 0 0.1 \
        remix $1
}
operator() { say '1 0' ru+Annie 205 "$1"; }
client() { say '0 1' ru+Andy 195 "$1"; }

operator 'Магазин «Парус», Анна, здравствуйте!'
client 'Добрый день! Где мой заказ?'
operator 'Назовите, пожалуйста, номер.'
client 'Семь, семь, три, один.'
operator 'Он в пути, привезём завтра.'
client 'Спасибо!'

sox -D "$parts"/turn?.wav "$sample"

# A pair of keys that everybody knows, where nixpkgs has it.
pkgs: {
  snakeOilEd25519PrivateKey = pkgs.writeText "key" "no key";
  snakeOilEd25519PublicKey = "ssh-ed25519 AAAA";
}

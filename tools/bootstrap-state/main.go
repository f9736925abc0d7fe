// Brings the store of a CometBFT node that has none to a height whose state the application has already: CometBFT's own
// `node.BootstrapState`, which its command line does not offer. Servers and trust are those of [statesync] in config.toml.
package main

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cometbft/cometbft/config"
	"github.com/cometbft/cometbft/node"
	"github.com/spf13/viper"
)

func bootstrap(home string, height uint64, appHash string) error {
	hash, err := hex.DecodeString(appHash)
	if err != nil || len(hash) != 32 || height == 0 {
		return fmt.Errorf("expected --height H and --app-hash with 64 hexadecimal digits")
	}
	viper.SetConfigFile(filepath.Join(home, "config", "config.toml"))
	if err := viper.ReadInConfig(); err != nil {
		return err
	}
	read := config.DefaultConfig()
	if err := viper.Unmarshal(read); err != nil {
		return err
	}
	read.SetRoot(home)
	if err := read.ValidateBasic(); err != nil {
		return err
	}
	return node.BootstrapState(context.Background(), read, config.DefaultDBProvider, height, hash)
}

func main() {
	home := flag.String("home", "", "the home directory of CometBFT")
	height := flag.Uint64("height", 0, "the height of the application's state")
	appHash := flag.String("app-hash", "", "the root of that state")
	flag.Parse()
	if err := bootstrap(*home, *height, *appHash); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
